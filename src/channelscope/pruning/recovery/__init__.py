"""Repair without training: re-fitted layers, weighted sums of peers, re-estimated BatchNorms."""
