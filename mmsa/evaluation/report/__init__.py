"""One evaluation's report: what it says (`findings`), in words, in files and as a page; and reading
a finished one again.
"""
