"""The tiny solver: a small Llama-style model that sdcore trains from scratch and ships.

It stands in for a pretrained model. It writes traces for the problems of ``sdcore.arithmetic``,
it lacks some of the arithmetic (its plain documents never show certain digit pairs), and it can
use a solution that stands in its context, since half of its documents have one.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdcore import arithmetic
from sdcore.arithmetic import Move

STUDENT_PROMPT = "{{ question }}"
TEACHER_PROMPT = "Hint: {{ context }}\n{{ question }}"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message.role + '>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>")
TAGS = tuple(
    f"<{slash}{name}>" for name in ("step_1", "step_2", "step_3", "step_4", "answer")
    for slash in ("", "/")
)


def words() -> list[str]:
    """The pieces of questions, steps and prompts between their numbers, longest first."""
    styles = [template for style in arithmetic.STYLES.values() for template in style]
    templates = [*styles, *arithmetic.REFERENCE_STYLE, *arithmetic.QUESTIONS, TEACHER_PROMPT]
    pieces = {piece for text in templates for piece in re.split(r"\{+.*?\}+", text)}
    return sorted((piece for piece in pieces if len(piece) > 1), key=lambda p: (-len(p), p))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and tags; other ASCII text falls apart into characters."""
    pieces = [*TAGS, *words(), *(chr(code) for code in (10, *range(32, 127)))]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    alternatives = "|".join(re.escape(piece) for piece in [*TAGS, *words()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{alternatives}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How the shipped weights are made; the model card repeats it."""

    seed: int = 0
    steps: int = 3000
    plain: int = 40  # documents a step
    aligned: int = 12
    reference: int = 14
    sibling: int = 6
    missing: float = 0.3  # share of digit facts that plain documents never show
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01


Fact = tuple[bool, int, int]


@dataclass(frozen=True)
class Document:
    """A prompt and the trace to learn; only the trace is in the loss."""

    prompt: str
    trace: str


def fact(move: Move) -> Fact:
    """The units of a step: whether magnitudes add up, then the digit of the larger and smaller."""
    small, large = sorted((abs(move.left), abs(move.right)))
    adds = (move.left < 0) == (move.right < 0)
    digits = (large % 10, small % 10)
    return (adds, max(digits), min(digits)) if adds else (adds, *digits)


def missing_facts(recipe: Recipe) -> frozenset[Fact]:
    """The digit facts that plain documents leave out."""
    everything = [(True, a, b) for a in range(10) for b in range(a + 1)]
    everything += [(False, a, b) for a in range(10) for b in range(10)]
    count = round(recipe.missing * len(everything))
    return frozenset(random.Random(recipe.seed).sample(everything, count))  # noqa: S311


def plain_documents(recipe: Recipe) -> Iterator[Document]:
    """Questions with a trace that uses known facts only."""
    rng, missing = random.Random(recipe.seed + 1), missing_facts(recipe)  # noqa: S311
    for problem in arithmetic.draw_problems(recipe.seed + 1, holdout=False):
        order, style = rng.choice(list(arithmetic.ORDERS)), rng.choice(list(arithmetic.STYLES))
        if not any(fact(move) in missing for move in arithmetic.moves(problem, arithmetic.ORDERS[order])):
            steps = arithmetic.solve(problem, order, style)
            yield Document(problem.question, arithmetic.trace_text(steps, problem.answer))


def context_documents(recipe: Recipe, kind: str) -> Iterator[Document]:
    rng, missing = random.Random(f"{recipe.seed}{kind}"), missing_facts(recipe)  # noqa: S311
    orders, styles = arithmetic.ORDERS, list(arithmetic.STYLES)
    for problem in arithmetic.draw_problems(rng.randrange(1 << 30), holdout=False):
        order, style = rng.choice(list(orders)), rng.choice(styles)
        trace = arithmetic.trace_text(arithmetic.solve(problem, order, style), problem.answer)
        if kind == "aligned":
            context, shown = trace, orders[order]
        elif kind == "reference":
            context, shown = arithmetic.reference_solution(problem), arithmetic.REFERENCE_ORDER
        else:
            other = rng.choice(list(orders))
            shown = orders[other]
            context = arithmetic.trace_text(arithmetic.solve(problem, other, rng.choice(styles)), problem.answer)
        copyable = {frozenset((m.left, m.right)) for m in arithmetic.moves(problem, shown)}
        if all(frozenset((m.left, m.right)) in copyable or fact(m) not in missing
               for m in arithmetic.moves(problem, orders[order])):
            yield Document(f"Hint: {context}\n{problem.question}", trace)
