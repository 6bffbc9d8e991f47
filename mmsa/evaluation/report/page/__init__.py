"""`report.html`: a self-contained page that shows one evaluation."""
