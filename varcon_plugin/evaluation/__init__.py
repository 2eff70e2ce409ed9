"""Evaluation of frozen features, for any encoder.

Every protocol is a function of feature tensors and labels; nothing here imports an
adapter. Accuracies are percentages.
"""
