"""Learned heads: what the stack learns from reference labels, as candidates for local answers.

`Candidate.probabilities(HeadInputs)` gives (n, labels). A candidate is named by its digest; kinds:
`recalibrated` (over the local model's probabilities), `head` (over the text's vector) and `both`.
`ExampleStore.add`, `erase_*`, `purge` and `request_fit` keep labelled examples, encrypted.
`HeadTrainer.watch` fits due scopes in a process of its own. `HeadDirectory.newest` and `find` give
verified heads from memory; `HeadStore` exports and prunes them. `keys` has the keys of all this.
"""
