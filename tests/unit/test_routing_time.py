"""Reading the form of a chat takes time linear in its length, for any content."""

import signal
import subprocess
import sys
from pathlib import Path

from serving.contracts.requests import ChatRequest, Message
from serving.routing.answer_form import answer_form
from serving.routing.clauses import Normaliser
from serving.routing.closed_request import closed_obstacle
from serving.routing.closed_vocabulary import CLOSED_TASKS
from serving.routing.conversation import is_persona, read
from serving.routing.features import lexical_features
from serving.routing.foreign_output import (
    foreign_output,
    may_hold_instruction,
    names_several_texts,
)
from serving.routing.languages import direction, mentions_language
from serving.routing.narrow import instruction_obstacle, mixed, split_obstacle
from serving.routing.payload import (
    MAX_INSTRUCTION_CHARS,
    beginnings,
    further_splits,
    holds_list,
    only_names,
    split_message,
)
from serving.routing.router import tier_by_rule
from serving.routing.vocabulary import unknown_words
from serving.routing.worked_examples import worked_examples
from serving.tasks.blank_text import is_blank
from serving.tasks.catalog import load_specs
from serving.tasks.entity_location import locate
from serving.tasks.extraction import parse_mentions
from serving.tasks.translation_check import losses

SPECS = load_specs(None)
NORMALISER = Normaliser(SPECS)

# All rules together take about 0.05 s of processor time for 10,000 characters. One rule that takes
# quadratic time takes more than the limit: on pieces by its own code, on the longer runs of one
# character by the loops of the regular expression engine, which are a hundred times as fast.
CHARS = 10_000
RUN_CHARS = 80_000
LIMIT_S = 2.0
RUNS = ["\n", " ", "a", "1", ".", "-", "_", '"', "\u200b"]
PIECES = [
    "\n", " ", "\t", "\xa0", "\u200b", "a", "a ", "a\n", "1", "1 ", ".", ". ", "...a", ",", ":",
    ": ", "::\n", ";", ";\n", "; ", "{", "{ ", "{\n", "(", "()", '"', '" ', ' "a', "'", " 'a",
    "\u2018a ", "“", "“a", "”", "„", "«", "»", "<a>", "</a>", "<a></b>", "<", '"""', "'''",
    "---\n", "=", "> ", "> a\n", "- a\n", "1. ", "def a", "class ", "def a\n", "from a ",
    "import ", "function ", "func a", "return a", "SELECT ", "Text: ", "Text:\n", "the ",
    "English:\n", "German ", "in ", "to ", "en ", "en-", "a or ", "a, ", "a/b ", "you are ",
    "you are a ", "be ", "A) ", "A) a\n", "\n(", "… ", "_", "a@", "a.", "http://", "{a", "%(",
    "<a ", "</", "I can't ", "[", '{"text": ', "```", "```\n", "é", "write ", "answer in ", "I ",
    "don't ", "wo'", "positive ", "x: y\n", "in the ", "0 = ",
    "SYSTEM: ", "USER: ", "a: b\n\n", "\n\n", "a\n\n", "\r\n",
]  # fmt: skip
FRAMES = [
    ("Write a poem", ""), ("", "end"), ("Classify the sentiment: ", "\n"), ("func ", "("),
    ("…", "x y"), ("Translate to German: ", " a"),
]  # fmt: skip


def read_in_every_way(text: str) -> None:
    """Apply every rule of the router and of reading answers to a text."""
    for messages in ((Message("user", text),), (Message("system", text), Message("user", "a"))):
        tier_by_rule(read(ChatRequest("auto", messages), 10**9))
    is_persona(text)
    lexical_features(text)
    may_hold_instruction(text)
    names_several_texts(text)
    mentions_language(text)
    instruction_obstacle(text)
    holds_list(text)
    only_names(text)
    is_blank(text)
    parse_mentions(text)
    for split in split_message(text):
        split_obstacle(split)
    for one in beginnings(text):
        mixed(one.split.payload, weak=one.weak)
    for split in further_splits(text):
        split_obstacle(split)
    worked_examples(text)
    short = text[:MAX_INSTRUCTION_CHARS]
    answer_form(short, SPECS["topic"])  # type: ignore[arg-type]
    foreign_output(short)
    direction(short, ("en", "de", "fr"))
    unknown_words(short, ())
    for task in CLOSED_TASKS:
        closed_obstacle(NORMALISER.clauses(f"{short} sentiment entities"), task)
    losses(text, text[:-1], "en", "de")


def read_everything() -> None:
    """Apply every rule to texts made of what the rules look for.

    Prints each text's repeated piece. The process is killed by SIGPROF at the time limit.
    """
    sizes = [*((piece, CHARS) for piece in PIECES), *((piece, RUN_CHARS) for piece in RUNS)]
    for number, (piece, chars) in enumerate(sizes):
        print(ascii(piece), flush=True)
        before, after = FRAMES[number % len(FRAMES)]
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        read_in_every_way(before + piece * (chars // len(piece)) + after)
    for text in ("Ann " * 5_000, "e\u0301" * 5_000, "\u201c" * 10_000):
        print(ascii(text[:4]), flush=True)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        locate([("Ann", "x"), ("absent", "x")] * 100, text)


def test_no_text_takes_more_time_than_its_length_explains() -> None:
    # A process of its own, which a signal can kill inside a regular expression.
    script = f"import {__name__} as test; test.read_everything()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr}"
