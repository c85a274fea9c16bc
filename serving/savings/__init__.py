"""The audit of a bill: what each lever would have saved on a log of requests, offline."""
