"""`python -m mmsa export`: a trained model in the forms that other programs read.

command    the command line
onnx/      ONNX with its preprocessing as JSON, compared with torch on real samples; int8
hub/       the layout of the Hugging Face hub: model card, handler, push
"""
