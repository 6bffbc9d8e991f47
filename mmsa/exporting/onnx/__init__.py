"""A model as ONNX, for programs without torch.

graph      the model through torch's exporter; the batch and the length of texts stay free
samples    real samples of the validation split, as the model reads them
agreement  the ONNX file beside torch on these samples: a file that differs is refused
int8       weights of matrix products in 8 bits; what that costs and gains
example    the program in the directory, for onnxruntime, tokenizers, Pillow and numpy alone
write      all of them in order, and the directory
"""
