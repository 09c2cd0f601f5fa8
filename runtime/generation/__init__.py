"""Prompts to text: a decoder graph with its cache, an engine that many requests share, and the text side of it.

Tokens are chosen in sampling.py, kept to a grammar in constraints.py, made into text in streaming.py and cut in
stopping.py; chat.py makes prompts of conversations.
"""
