"""`report.html`: one file that shows an evaluation, with nothing to be fetched from elsewhere."""
