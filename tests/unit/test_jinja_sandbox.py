import time

import pytest

from sdcore.errors import ConfigError
from sdcore.jinja_sandbox import render, variables


def test_render_fills_values_and_keeps_the_text_around_them():
    assert render("{{ a }}\n- {{ b }}\n", a="{{ b }}", b="<1 & 2>") == "{{ b }}\n- <1 & 2>\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}",
        "{% if %}",
        "{{ a.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{{ a + 1 }}",
        "{{ [a] | random }}",
        "{{ lipsum() }}",
    ],
)
def test_render_refuses_what_does_not_work(template):
    with pytest.raises(ConfigError, match="does not render") as caught:
        render(template, a="text")
    assert caught.value.where == template


NESTED = "{% for i in range(9) %}" * 8 + "{% endfor %}" * 8
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    NESTED,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ 'a' * 10 ** 12 }}", "{{ 10 ** 12 * [a] }}", "{{ 10 ** (10 ** 10) }}",
    "{{ a | center(10 ** 7) }}", "{{ [].pop() }}", "{{ '{0}'.format() }}", "{{ {}.x.y }}",
    "{% for i in a %}" * 25 + "{% endfor %}" * 25, "{{ " + "(" * 9000 + ")" * 9000 + " }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS)
def test_no_template_takes_for_ever(template):
    start = time.process_time()
    with pytest.raises(ConfigError):
        render(template, a="text")
    assert time.process_time() - start < 10


def test_loops_and_macros_do_what_they_are_for():
    loop = "{% for c in a if c != 'b' %}{{ loop.index }}{{ c }}{% else %}none{% endfor %}"
    assert render(loop, a="abc") == "1a2c" and render(loop, a="b") == "none"
    macro = (
        "{% macro f(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call f(1) %}{{ a }}{% endcall %}"
    )
    assert render(macro, a="y") == "<1y>"
    assert render("{{ a ~ 1 }}{{ 'ab' * 2 }}{{ 3 * 4 }}{{ 2 ** 10 }}{{ [1] + [2] }}", a="x") == (
        "x1abab121024[1, 2]"
    )
    assert render("{% for c in a %}{{ c }}{% endfor %}", a="x" * 20_000) == "x" * 20_000
    assert variables(loop) == {"a"}


def test_variables_are_what_a_template_names_and_does_not_set():
    assert variables("{% set c = a %}{{ c }}{% if b.x %}{{ b.y }}{% endif %}") == {"a", "b"}
    with pytest.raises(ConfigError, match="malformed"):
        variables("{% if %}")
