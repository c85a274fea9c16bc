"""What a narrow task is: its prompt, its decoding constraint, its parser, its confidence. Pure.

Serving and evaluation both run this code: an evaluation of other prompts than those served
proves nothing.
"""
