"""The report of one evaluation.

`findings` computes its content, `summary` the text, `confusion_matrix` the image, `page` the HTML;
`files` and `predictions_file` write it, `read_report` reads a finished one.
"""
