"""Long answers: what a model that errs a little at every token does over hundreds of them.

A weak quantization fails first where much is generated: its answers grow, run into the limit and turn
in circles before single questions show a loss (arXiv 2606.00206).
"""
