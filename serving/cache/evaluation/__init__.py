"""Measures lookups by meaning on files of questions, beside a fixed cosine.

`changed_pairs.jsonl`: pairs of near wordings with different answers; none may be served.
`paraphrases.jsonl`: pairs with one answer. Both were written for this project.
`unseen_*.jsonl`: pairs that were written before the guards were changed for them.
"""
