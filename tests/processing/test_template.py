"""Templates: the reference's prompt to the letter, where texts are cut, and what is refused."""

from pathlib import Path

import pytest

from chat_families import tokenizer_of
from medmvl.processing.template import Medium, Template, TemplateError, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
ROLES = ("user", "assistant", "user", "assistant")
SAYS = (
    (Medium(0), "\nIs there a fracture?"),
    ("No.",),
    ("What modality is this?",),
    ("Chest X-ray",),
)


def test_vicuna_is_the_published_prompt_cut_where_the_reference_cuts() -> None:
    tokenizer = tokenizer_of("chatml")
    end = tokenizer.eos_token_id
    ((first, second),) = Template.load("vicuna", tokenizer).branches(ROLES, SAYS)
    # The stand-alone space before the image and the one inside the answer are the published models' habit.
    assert first == Turn(
        (f"{SYSTEM} USER: ", Medium(0), "\nIs there a fracture? ASSISTANT:"), (" No.", end), supervised=True
    )
    assert second == Turn(("USER: What modality is this? ASSISTANT:",), (" Chest X-ray", end), supervised=True)


def test_vicuna_takes_another_system_sentence() -> None:
    template = Template.load("vicuna", tokenizer_of("chatml"))
    ((turn,),) = template.branches(("system", "user", "assistant"), (("Be brief.",), ("Hi",), ("Yes",)))
    assert turn.prompt == ("Be brief. USER: Hi ASSISTANT:",)


def test_plain_and_pretrain_show_media_and_caption_only() -> None:
    tokenizer = tokenizer_of("chatml")
    says = ((Medium(0), "\nDescribe", Medium(1)), ("No.",))
    ((plain,),) = Template.load("plain", tokenizer).branches(ROLES[:2], says)
    assert plain == Turn((Medium(0), Medium(1)), ("No.", tokenizer.eos_token_id), supervised=True)
    ((pretrain,),) = Template.load("pretrain", tokenizer).branches(ROLES[:2], says)
    assert pretrain == Turn((Medium(0), Medium(1)), ("No.",), supervised=True)


def test_plain_learns_text_alone() -> None:
    tokenizer = tokenizer_of("chatml")
    ((turn,),) = Template.load("plain", tokenizer).branches(("assistant",), (("Only text.",),))
    assert turn == Turn((), ("Only text.", tokenizer.eos_token_id), supervised=True)


def test_each_order_of_roles_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("chatml")
    template = Template.load(None, tokenizer)
    before = template.branches(ROLES, SAYS)
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", None)
    assert template.branches(ROLES, SAYS) == before


@pytest.mark.parametrize(
    "today",
    [
        "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
        "{{ strftime_now('%d %b %Y') }}",
        "{%- set today = strftime_now('%d %b %Y') -%}\n{{ today }}",
        "{% macro header() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ header() }}",
    ],
)
def test_a_prompt_does_not_change_over_night(today: str) -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = today + "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    ((turn,),) = Template.load(None, tokenizer).branches(("user", "assistant"), (("q",), ("a",)))
    assert turn.prompt[0] == "26 Jul 2024q"


def test_what_is_said_cannot_steer_the_template() -> None:
    tokenizer = tokenizer_of("chatml_think")
    template = Template.load(None, tokenizer)
    says = (("{{ 7 * 7 }}</think>{% raw %}\U00100000",), ("<think>x</think>y",))
    ((turn,),) = template.branches(("user", "assistant"), says)
    assert "user\n" + says[0][0] in turn.prompt
    assert turn.target[0] == says[1][0]


def test_a_file_serves_as_template_and_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]<|im_end|>{% endfor %}")
    template = Template.load(file, tokenizer_of("chatml"))
    assert template.name == "mine"
    assert Template.load(str(file), tokenizer_of("chatml")).source == template.source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vicunna", r"unknown template 'vicunna'; did you mean 'vicuna'.*plain, pretrain, vicuna.*\.jinja file"),
        ("no/such.jinja", r"cannot read template no/such\.jinja: No such file"),
    ],
)
def test_wrong_names_are_answered(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Template.load(name, tokenizer_of("chatml"))


def test_a_tokenizer_without_template_gets_the_papers_prompt_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    logger = type("Log", (), {"warning": staticmethod(lambda text, *values: said.append(text % values))})
    monkeypatch.setattr("medmvl.processing.template.get_logger", lambda _: logger)
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = None
    assert Template.load(None, tokenizer).source == Template.load("vicuna", tokenizer).source
    assert len(said) == 1 and "no chat template of its own" in said[0] and "plain, pretrain, vicuna" in said[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }", "refuses messages.*user, assistant"),
        ("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}", "leaves out what the assistant says"),
        ("{% for m in messages[1:] %}{{ m.content }}<|im_end|>{% endfor %}", r"leaves out message 0 \(user\)"),
        ("{% for m in messages %}{{ m.content * 2 }}<|im_end|>{% endfor %}", "repeats message 0"),
        ("\U00100000", "private characters"),
        ("{{ messages.append(1) }}", "refuses messages"),
    ],
)
def test_templates_that_cannot_work_are_refused_when_loaded(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Template("bad", source, tokenizer_of("chatml"))


def test_an_answer_needs_an_end() -> None:
    tokenizer = tokenizer_of("chatml")
    source = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert Template("open", source, tokenizer).end_mark == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match=r"no control token.*no eos_token.*end mark: none"):
        Template("open", source, tokenizer)
    assert Template("open", "{# end mark: none #}" + source, tokenizer).end_mark is None


def test_a_conversation_ends_with_the_assistant() -> None:
    with pytest.raises(ValueError, match="ends with the assistant, got roles user, assistant, user"):
        Template.load(None, tokenizer_of("chatml")).branches(ROLES[:3], SAYS[:3])
