"""Guards: each can only refuse to take two questions for one. Pure, lexical, four languages.

A vector does not tell "turn on" from "turn off", so a guard decides before a threshold does. Each
compares one property of two texts and returns a reason, or None. A guard never accepts: what all of
them let through still has to reach the threshold.
"""
