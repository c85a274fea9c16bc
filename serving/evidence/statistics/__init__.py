"""Statistics of claims. Pure: no input or output, no clock, no random numbers.

The state of a claim is a fold of its rows in the order of the database; equal rows give an equal
state, so a restart recomputes it, and its memory is bounded.

Earning, in `earning`, `examples` and `placement`:

1. A candidate is fixed (a fit, or the model itself). `place_thresholds` (examples of the fit, by
   cross-validation) or `place_on_curve` (a curve of errors over coverage) returns `Opening` rows.
2. `Earning(EarningRules(target)).add(row)` takes `Opening`, `Example` and `Reopened` (suspended)
   and returns the `Hypothesis` that becomes claimed by the row, else None. A candidate is any name
   with a confidence and a loss (`Outcome`) on each example. `examples` decides which examples
   count: one of a group, and a text once.
3. `Earning.is_not_earnable` is the stop rule.

Watching, in `watching`: `Watch(target).add(loss)` for each audited accepted input, None where the
verdict is missing; `Watch.reason` says why the claim must be suspended. `audit_rate` has the coin,
the share to audit, its budget over a day and how many shortcuts go together; `drift` the signs that
raise the share.

Shown errors, in `intervals` and `people`: `mean_sequence` (valid at every time), `clopper_pearson`,
`error_against_people`.

New candidates from evidence, in `recalibration`: `fit_isotonic`, `fit_offsets`,
`fit_label_confidence` (a threshold for each label).

Losses of a judge, in `judged`: `judged_pair` from the verdicts in both orders, and
`JudgedBaseline.is_unjudgeable` of the reference against itself.
"""
