import pytest

from sdcore.errors import ConfigError
from sdcore.jinja_sandbox import render, variables


def test_render_fills_values_and_keeps_the_text_around_them():
    assert render("{{ a }}\n- {{ b }}\n", a="{{ b }}", b="<1 & 2>") == "{{ b }}\n- <1 & 2>\n"


@pytest.mark.parametrize(
    "template",
    ["{{ missing }}", "{% if %}", "{{ a.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ a + 1 }}"],
)
def test_render_refuses_what_does_not_work(template):
    with pytest.raises(ConfigError, match="does not render") as caught:
        render(template, a="text")
    assert caught.value.where == template


def test_variables_are_what_a_template_names_and_does_not_set():
    assert variables("{% set c = a %}{{ c }}{% if b.x %}{{ b.y }}{% endif %}") == {"a", "b"}
    with pytest.raises(ConfigError, match="malformed"):
        variables("{% if %}")
