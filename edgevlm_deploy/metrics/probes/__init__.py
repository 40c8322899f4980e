"""Metrics of questions that test one habit: negation, prior bias, backgrounds, foreign questions."""
