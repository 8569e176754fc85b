"""Closed forms: information, regression, graphs, ranks and intervals; no formula sees a module."""
