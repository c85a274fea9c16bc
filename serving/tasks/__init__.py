"""Narrow tasks: prompt, decoding constraint, parser and confidence. Pure.

Serving and evaluation run this same code, so that an evaluation applies to the served prompts.
"""
