"""Reports on a packed set: tables, pages, the data card, leaks."""
