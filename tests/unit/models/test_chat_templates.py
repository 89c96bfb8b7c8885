import pytest

from sdcore.errors import ModelError
from sdcore.models.chat_templates import LARGEST, require_bounded, tried
from sdcore.models.policies import load_tokenizer
from tests.helpers.families import CHATML, QWEN, characters

ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLING = (
    "{% set ns = namespace(text='x' * 99) %}"
    "{% for _ in range(60) %}{% set ns.text = ns.text ~ ns.text %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "takes more than 1.5 s"),
        (DOUBLING, "MiB of memory"),
        ("{{ 'x'.center(10 ** 12) }}", "MiB of memory"),
        ("{% generation %}{{ 'x' * 1000001 }}{% endgeneration %}", "1000001 characters"),
        ("x" * (LARGEST + 1), "1000001 characters"),
        ("{{ messages | random }}", "random"),
        ("{{ lipsum() }}", "lipsum"),
        (5, "not text"),
    ],
)
def test_a_chat_template_without_bounds_or_a_fixed_text_is_refused(template, reason, tmp_path):
    with pytest.raises(ModelError, match=reason) as caught:
        require_bounded(template, tmp_path)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("template", [CHATML, QWEN, "{% for", "{{ raise_exception('no') }}"])
def test_others_are_left_to_their_use(template, tmp_path):
    require_bounded(template, tmp_path)


def test_the_size_is_that_of_the_longest_conversation():
    once = "{% for each in messages %}{{ each.content }}{% endfor %}"
    assert tried(once)[0] == 3 * tried("{{ messages[0].content }}")[0] > 0


def test_a_tokenizer_with_such_a_template_is_not_loaded(tmp_path):
    tokenizer = characters()
    tokenizer.chat_template = "{{ 'x' * 1000001 }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(tmp_path)
