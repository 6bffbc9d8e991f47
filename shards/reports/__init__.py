"""What is said of a packed set: tables, pages, the data card, leaks."""
