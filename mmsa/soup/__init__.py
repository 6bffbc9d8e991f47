"""`python -m mmsa soup`: the mean of the weights of several exports, chosen on validation alone."""
