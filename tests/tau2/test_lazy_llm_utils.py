"""litellm is imported when a language model is asked, and not before."""

import subprocess
import sys

ALONE = "import sys; import rollout_service.tau2.episode; "


def output(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", ALONE + program], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_episodes_of_a_scripted_user_need_no_litellm():
    assert output("print('litellm' in sys.modules)") == "False"


def test_what_asks_a_model_runs_tau2_s_own_code_with_litellm_set_up():
    program = (
        "from tau2.utils.llm_utils import generate, to_litellm_messages\n"
        "import litellm; from tau2.utils import llm_utils\n"
        "print(to_litellm_messages is llm_utils.to_litellm_messages, litellm.suppress_debug_info,"
        " litellm.client_session is not None)\n"
        "try: generate('no-such-provider/x', [])\n"
        "except litellm.BadRequestError as error: print(type(error).__name__)"
    )
    assert output(program).splitlines()[-2:] == ["True True True", "BadRequestError"]
