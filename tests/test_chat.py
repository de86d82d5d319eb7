"""`minipali chat`, with a tiny random language model in place of a published one."""

import io

import pytest
from test_variants import pair

from minipali import cli, variants
from minipali.gguf_tokenizers import Tokenizer
from minipali.variants import chat_prompt


@pytest.fixture
def talk(monkeypatch, capsys):
    """Run the command with lines typed; what it printed, and the prompts that the model got."""
    model, prompts = pair("llama")[0], []

    def run(*arguments, lines="", chats=True, said="yes"):
        tokenizer = Tokenizer(lambda text: list(text.encode()), str, 1, chats)
        monkeypatch.setattr(variants, "load", lambda source: (model, tokenizer))
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))

        def stream_text(model, tokenizer, prompt, **how):
            prompts.append((prompt, how))
            yield from said if not isinstance(said, type) else _interrupted(said)

        monkeypatch.setattr(variants, "stream_text", stream_text)
        prompts.clear()
        code = cli.main(["chat", *arguments])
        return code, capsys.readouterr(), list(prompts)

    return run


def _interrupted(error):
    yield "ye"
    raise error


def test_a_question_is_answered_once(talk):
    code, told, [(prompt, how)] = talk("smollm2", "Who?", "--max-tokens", "5")
    assert (code, told.out, told.err) == (0, "yes\n", "")
    assert prompt == chat_prompt([("user", "Who?")])
    assert how["max_new_tokens"] == 5 and how["temperature"] == 0


def test_the_marks_are_those_that_the_model_was_trained_with(talk):
    _, _, [(prompt, _)] = talk("smollm2", "Who?", "--system", "Be short.")
    assert prompt == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_chat_template_of_the_file_gives_the_same():
    jinja2 = pytest.importorskip("jinja2")
    from minipali import published
    from minipali.gguf import GGUF

    try:
        metadata = GGUF(published.find("smollm2")).metadata
    except published.PublishedError as error:
        pytest.skip(str(error))
    turns = [("user", "Who?"), ("assistant", "Ada."), ("user", "Sure?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    template = jinja2.Template(metadata["tokenizer.chat_template"])
    assert template.render(messages=messages, add_generation_prompt=True) == chat_prompt(turns)


def test_lines_are_turns_of_one_talk_until_the_end(talk):
    code, told, prompts = talk("smollm2", "--max-tokens", "1", lines="One?\n\n  Two?  \n")
    assert code == 0 and told.out == "yes\nyes\n"
    assert prompts[0][0] == chat_prompt([("user", "One?")])
    # 64 positions do not hold both turns: the oldest are forgotten, and it is said.
    assert prompts[1][0] == chat_prompt([("user", "Two?")])
    assert "the beginning of this talk is forgotten" in told.err


def test_what_was_said_before_is_told_again(talk, monkeypatch):
    model = pair("llama")[0]
    monkeypatch.setattr(model, "config", variants.text_config("llama"))
    _, told, prompts = talk(lines="One?\nTwo?\n")
    wanted = [("user", "One?"), ("assistant", "yes"), ("user", "Two?")]
    assert prompts[1][0] == chat_prompt(wanted) and told.err == ""


def test_a_model_that_has_not_learned_to_chat_goes_on_with_each_text(talk):
    _, _, prompts = talk("gemma3", lines="The dog\nA cat\n", chats=False)
    assert [prompt for prompt, _ in prompts] == ["The dog", "A cat"]
    code, told, prompts = talk("gemma3", "--system", "x", chats=False)
    assert code == 2 and not prompts and "--system is for a model that answers" in told.err


def test_ctrl_c_cuts_an_answer_off_and_ends_a_single_one(talk):
    code, told, prompts = talk(lines="One?\nTwo?\n", said=KeyboardInterrupt)
    assert code == 0 and told.out == "ye\nye\n" and len(prompts) == 2
    code, told, _ = talk("smollm2", "Who?", said=KeyboardInterrupt)
    assert code == 130 and told.out == "ye\n"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["small"], "a language model must be smollm2, gemma3 or a GGUF file, found 'small'"),
        (["no.gguf"], "no.gguf must be a readable GGUF file"),
        (["smollm2", "x", "--top-k", "3"], "give --temperature above 0 too"),
    ],
)
def test_bad_values_are_told_in_one_line(arguments, says, capsys):
    assert cli.main(["chat", *arguments]) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and told.out == ""


def test_a_picture_needs_another_model(capsys):
    assert cli.main(["ask", "--model", "smollm2"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "talk with it by `minipali chat smollm2`" in told.err
