"""The parsers come without the rest of their package, which others get whole."""

import subprocess
import sys


def test_the_codec_imports_no_api_client_and_leaves_the_package_as_it_is():
    program = (
        "import sys; from rollout_service.chat import ChatCodec; ChatCodec.load(None)\n"
        "print('openai' in sys.modules, 'renderers' in sys.modules)\n"
        "import renderers, renderers.parsers\n"
        "from rollout_service.chat.tool_parsers import tool_parsers\n"
        "print(callable(renderers.create_renderer), set(renderers.parsers.TOOL_PARSERS) == set(tool_parsers()))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False", "True", "True"]
