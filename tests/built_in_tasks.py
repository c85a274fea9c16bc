"""The tasks that ship with the project, by name, in alphabetical order."""

BUILT_IN_TASKS = ("ner", "sentiment", "topic", "translation")
