"""What a narrow task is: its prompt, its decoding constraint, its parser, its confidence. Pure.

Serving and evaluation run this same code: an evaluation of other prompts than those that are served
says nothing about them.
"""
