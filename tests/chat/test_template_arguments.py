"""Arguments of the chat template reach every rendering, and are refused where nothing reads them."""

from __future__ import annotations

import pytest
import transformers

from rollout_service.adapters.checks import check_template_arguments
from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec
from rollout_service.chat.suitability import check_suits
from rollout_service.chat.transcript import Transcript
from rollout_service.config import RolloutConfig
from rollout_service.errors import CodecError, ConfigError
from tests.families.play import generation, play
from tests.support import episodes
from tests.support.family_templates import codec, tokenizer

PROMPT = "{{- '<|im_start|>assistant\\n' -}}"
SWITCHED = PROMPT + "{%- if quick is defined and quick -%}{{- 'Quick: ' -}}{%- endif -%}"
CONTENT = "{{- message.content or '' -}}"


def switched(**arguments: object) -> ChatCodec:
    """A codec whose template has a switch that adds a word to each turn of the assistant."""
    made = transformers.PreTrainedTokenizerFast.from_pretrained(EMBEDDED_TOKENIZER)
    word = "{%- if message.role == 'assistant' and quick -%}{{- 'Quick: ' -}}{%- endif -%}"
    assert PROMPT in made.chat_template
    made.chat_template = made.chat_template.replace(PROMPT, SWITCHED).replace(CONTENT, word + CONTENT)
    return ChatCodec(made, name="switched", template_arguments=arguments)


def test_an_argument_reaches_the_prompts_and_what_follows_a_turn() -> None:
    quick, slow = switched(quick=True), switched(quick=False)
    opening = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}]
    for made, word in ((quick, "Quick: "), (slow, "")):
        transcript = Transcript(made)
        assert made.decode(transcript.prompt(opening).tolist()).endswith(f"assistant\n{word}")
        transcript.record(generation(made.encode_turn("Yes?")))
        following = transcript.prompt([{"role": "user", "content": "Go on."}]).tolist()
        assert made.decode(following).endswith(f"user\nGo on.<|im_end|>\n<|im_start|>assistant\n{word}")
        assert not play(made, range(5)).wrong


def test_an_argument_that_the_template_does_not_read_is_refused_with_those_that_it_reads() -> None:
    with pytest.raises(CodecError, match=r"does not read 'enable_thinking'.*The template reads quick\."):
        switched(quick=True, enable_thinking=False)


def test_an_argument_with_the_value_that_it_has_anyway_is_read() -> None:
    assert switched(quick=False).template_arguments == {"quick": False}


@pytest.mark.parametrize("name", ["tools", "messages", "add_generation_prompt", "chat_template"])
def test_an_argument_of_the_rendering_itself_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match=f"{name} is set by the service itself"):
        switched(**{name: []})


def test_the_settings_say_the_arguments_and_provenance_records_them(tmp_path: pytest.TempPathFactory) -> None:
    folder = str(tmp_path)
    switched(quick=True)._tokenizer.save_pretrained(folder)
    config = episodes.settings(policy__tokenizer=folder, policy__template_arguments={"quick": True})
    made = ChatCodec.of(config.policy)
    assert made.template_arguments == {"quick": True}
    assert made.decode(made.render([{"role": "user", "content": "Hi."}])).endswith("Quick: ")


def test_a_secret_is_no_argument() -> None:
    with pytest.raises(ConfigError, match=r"policy\.template_arguments .*api_key would be a secret"):
        episodes.settings(policy__template_arguments={"api_key": "sk-aaaaaaaaaaaaaaaaaaaaaaaa"})


def test_a_trainer_with_other_arguments_is_refused() -> None:
    check_template_arguments({"quick": True}, {"quick": True}, "kwargs")
    check_template_arguments({"quick": True}, None, "kwargs")
    with pytest.raises(ConfigError, match=r"policy\.template_arguments is \{\}, and the trainer's kwargs is"):
        check_template_arguments({}, {"quick": True}, "kwargs")


# What a template leaves out ------------------------------------------------------------------------------------------


def settings(**policy: object) -> RolloutConfig:
    return episodes.settings(**{f"policy__{name}": value for name, value in policy.items()})


def test_a_template_that_loses_text_beside_calls_is_followed_where_nothing_is_lost() -> None:
    made = codec("nothing but an object")
    check_suits(made, settings(history="append"))
    with pytest.raises(CodecError, match="leaves out what the assistant says beside a tool call") as caught:
        check_suits(made, settings(history="template"))
    assert "policy.accepted_losses to [text_beside_calls]" in caught.value.remedy
    check_suits(made, settings(history="template", accepted_losses=["text_beside_calls"]))


def test_a_template_that_ignores_the_tools_is_refused_unless_the_settings_accept_it() -> None:
    made = tokenizer("parameters")
    made.chat_template = made.chat_template.replace("~ (tools | tojson)", "")
    deaf = ChatCodec(made, name="deaf")
    with pytest.raises(CodecError, match="leaves out the tools"):
        check_suits(deaf, settings())
    check_suits(deaf, settings(accepted_losses=["tools"]))


def test_a_template_that_needs_a_user_is_refused_for_the_solo_agent() -> None:
    made = tokenizer("parameters")
    raises = "{%- if not messages | selectattr('role', 'equalto', 'user') | list -%}{{- raise_exception('no user') -}}"
    made.chat_template = raises + "{%- endif -%}" + made.chat_template
    needy = ChatCodec(made, name="needy")
    check_suits(needy, settings())
    with pytest.raises(CodecError, match=r"takes no conversation without a user.*no user"):
        check_suits(needy, episodes.settings(agent="solo", tasks__domain="telecom"))
