"""The layout of the Hugging Face hub.

write      the directory: the export's files as they are, a model card, a handler for endpoints
results    reports of the export -> what the card and its `model-index` say of them
card       the model card
handler    the file `handler.py` of the directory
push       uploads it: the weights in one commit, the card in another
"""
