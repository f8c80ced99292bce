"""Chat templates built as those of families in use are, written anew and small: how a role is
opened and closed, where reasoning is dropped, how functions, calls and results are written.
"""

from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from calibrant.testing import tiny_tokenizer


@dataclass(frozen=True)
class Family:
    """A template with the special tokens that it writes."""

    template: str
    special: tuple[str, ...]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a tokenizer of bytes with this template."""
        tokenizer = tiny_tokenizer()
        added = [AddedToken(token, special=True, normalized=False) for token in self.special]
        tokenizer.add_tokens(added, special_tokens=True)
        tokenizer.chat_template = self.template
        return tokenizer


CHATML_TOOLS = """\
{%- if tools %}
<|im_start|>system
{%- if messages[0].role == 'system' %}
{{ '\\n' + messages[0].content }}
{%- else %}
{{ '\\nYou are helpful.' }}
{%- endif %}
{{- '\\n\\n# Tools\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' }}{{- tool | tojson }}
{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
"""
CHATML_CALLS = """\
{%- for call in m.tool_calls %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
"""
CHATML_RESULT = """\
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
"""
CHATML_ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"

QWEN2 = (
    CHATML_TOOLS
    + """\
{%- for m in messages %}
{%- if m.role == 'tool' %}"""
    + CHATML_RESULT
    + """\
{%- elif m.role == 'assistant' and m.tool_calls %}
{{- '<|im_start|>assistant' }}
{%- if m.content %}{{- '\\n' + m.content }}{%- endif %}"""
    + CHATML_CALLS
    + """\
{{- '<|im_end|>\\n' }}
{%- elif not (m.role == 'system' and loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}"""
    + CHATML_ASK
)

# Reasoning stands in the turns behind the last question alone, and in the last turn always.
QWEN3 = (
    CHATML_TOOLS
    + """\
{%- set place = namespace(last=messages | length - 1, found=false) %}
{%- for m in messages[::-1] %}
{%- if not place.found and m.role == 'user' %}
{%- set place.found = true %}{%- set place.last = messages | length - 1 - loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'tool' %}"""
    + CHATML_RESULT
    + """\
{%- elif m.role == 'assistant' %}
{%- set thought = '' %}
{%- if m.reasoning_content is string %}
{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > place.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}
{{- content }}
{%- endif %}"""
    + CHATML_CALLS
    + """\
{{- '<|im_end|>\\n' }}
{%- elif not (m.role == 'system' and loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
)

# Functions come before the first question, a message has one call, a result is written as JSON.
LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(system='', asked=false) %}
{%- for m in messages %}{%- if loop.first and m.role == 'system' %}
{%- set ns.system = m.content | trim %}{%- endif %}{%- endfor %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- 'Knowledge: 2023\\n\\n' + ns.system + '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.role == 'system' and loop.first %}
{%- elif m.role == 'user' and tools and not ns.asked %}
{%- set ns.asked = true %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nGiven these functions:\\n\\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{{- m.content | trim + '<|eot_id|>' }}
{%- elif m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name }}
{{- '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif m.role in ('tool', 'ipython') %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
{%- if m.content is mapping or m.content is iterable %}{{- m.content | tojson }}
{%- else %}{{- m.content }}{%- endif %}{{- '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# The system's words and the functions stand before the last question; ids have nine letters.
MISTRAL3 = """\
{%- set system = '' %}{%- set rest = messages %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content %}{%- set rest = messages[1:] %}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in rest %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in rest %}
{%- if m.role == 'user' %}
{%- if loop.index0 == ns.last and tools %}
{{- '[AVAILABLE_TOOLS][' }}
{%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}{{- '][/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- if loop.index0 == ns.last and system %}
{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}
{{- raise_exception('ids of calls have nine letters') }}{%- endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}{{- ']' + eos_token }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id }}
{{- '"}[/TOOL_RESULTS]' }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}
{%- else %}{{- raise_exception('roles are user, assistant and tool') }}{%- endif %}
{%- endfor %}"""

MISTRAL7 = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
{%- elif m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
{%- else %}
{%- if m.content %}{{- m.content }}{%- endif %}
{%- for call in m.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}{{- eos_token }}
{%- endif %}
{%- endfor %}"""

# No role of the system's own, and user and model take turns.
GEMMA2 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('no role for the system') }}{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{%- endif %}
{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

# The system's words begin the first question.
GEMMA3 = """\
{{- bos_token }}
{%- set prefix = '' %}{%- set rest = messages %}
{%- if messages[0].role == 'system' %}
{%- set prefix = messages[0].content + '\\n\\n' %}{%- set rest = messages[1:] %}{%- endif %}
{%- for m in rest %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{%- if loop.first %}{{- prefix }}{%- endif %}
{{- m.content | trim }}{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

PHI3 = """\
{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

PHI4 = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}"""

# All reasoning is dropped; a call stands in a message without content.
DEEPSEEK = """\
{{- bos_token }}
{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content }}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' and m.tool_calls %}
{{- '<|Assistant|><|calls|>' }}
{%- for call in m.tool_calls %}
{{- '<|call|>function<|sep|>' + call.function.name + '\\n```json\\n' }}
{{- call.function.arguments | tojson }}{{- '\\n```<|call_end|>' }}
{%- endfor %}{{- '<|calls_end|><|end|>' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|Assistant|>' + content + '<|end|>' }}
{%- elif m.role == 'tool' %}{{- '<|output|>' + m.content + '<|output_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""

SMOLLM2 = """\
{%- for m in messages %}
{%- if loop.first and m.role != 'system' %}
{{- '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# A switch for thinking in the system's words, and spans that the assistant writes.
SMOLLM3 = """\
{%- set thinking = enable_thinking is not defined or enable_thinking %}
{{- '<|im_start|>system\\nReasoning mode: ' + ('/think' if thinking else '/no_think') + '\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
{%- for tool in tools or [] %}{{- '\\n' + tool.function | string }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{{- content.lstrip('\\n') }}
{%- for call in m.tool_calls %}
{{- '<tool_call>' + call.function.name + ' ' + call.function.arguments | tojson }}
{{- '</tool_call>' }}{%- endfor %}{{- '<|im_end|>' }}
{%- endgeneration %}{{- '\\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

GRANITE = """\
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = 'You are Granite.' %}{%- set rest = messages %}{%- endif %}
{%- if thinking %}{%- set system = system + ' Write your thoughts first.' %}{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}
{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) }}
{{- '<|end_of_text|>\\n' }}{%- endif %}
{%- for m in rest %}
{%- if m.role == 'tool' %}
{{- '<|start_of_role|>tool_response<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}
{%- else %}
{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' }}
{%- if m.content %}{{- m.content }}{%- endif %}
{%- if m.tool_calls %}{{- '<|tool_call|>[' }}
{%- for call in m.tool_calls %}{{- call.function | tojson }}
{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}{%- endif %}
{{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

COMMAND = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}
{{- '<|START|><|SYSTEM|>' + m.content + '<|END|>' }}
{%- elif m.role == 'user' %}{{- '<|START|><|USER|>' + m.content.strip() + '<|END|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|START|><|CHATBOT|>' }}
{%- if m.tool_calls %}{{- '<|ACTION|>[' }}
{%- for call in m.tool_calls %}
{{- '{"tool_name": ' }}{{- call.function.name | tojson }}{{- ', "parameters": ' }}
{{- call.function.arguments | tojson(indent=2) }}{{- '}' }}
{%- if not loop.last %}{{- ',\\n' }}{%- endif %}{%- endfor %}{{- ']<|END_ACTION|>' }}
{%- else %}{{- m.content.strip() }}{%- endif %}{{- '<|END|>' }}
{%- else %}{{- '<|START|><|SYSTEM|><results>' + m.content + '</results><|END|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START|><|CHATBOT|>' }}{%- endif %}"""

HERMES = """\
{{- bos_token }}
{%- if tools %}
{{- '<|im_start|>system\\nYou call functions. <tools> ' }}
{%- for tool in tools %}
{{- '{"name": "' + tool.function.name + '", "description": ' }}
{{- tool.function.description | tojson }}{{- '}' }}
{%- if not loop.last %}{{- ' ' }}{%- endif %}{%- endfor %}{{- ' </tools><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{{- '<|im_start|>assistant' }}
{%- for call in m.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>tool\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

OLMO = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|assistant|>\\n' + m.content + eos_token }}
{%- if not loop.last %}{{- '\\n' }}{%- endif %}
{%- else %}{{- '<|' + m.role + '|>\\n' + m.content + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

# A turn ends where the next one begins; a call is a line with the name, then the arguments.
GLM4 = """\
{{- '[gMASK]<sop>' }}
{%- if tools %}{{- '<|system|>\\n# Functions' }}
{%- for tool in tools %}
{{- '\\n\\n## ' + tool.function.name + '\\n\\n' + tool.function | tojson(indent=4) }}
{%- endfor %}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- if m.tool_calls %}
{%- for call in m.tool_calls %}
{{- '<|assistant|>' + call.function.name + '\\n' + call.function.arguments | tojson }}
{%- endfor %}
{%- else %}{{- '<|assistant|>\\n' + m.content }}{%- endif %}
{%- elif m.role == 'tool' %}{{- '<|observation|>\\n' + m.content }}
{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
FAMILIES = {
    "qwen2": Family(QWEN2, CHATML_TOKENS),
    "qwen3": Family(QWEN3, CHATML_TOKENS),
    "llama3": Family(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral3": Family(
        MISTRAL3,
        (
            *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
    ),
    "mistral7": Family(
        MISTRAL7,
        (
            *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]"),
            *("[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
    ),
    "gemma2": Family(GEMMA2, TURN_TOKENS),
    "gemma3": Family(GEMMA3, TURN_TOKENS),
    "phi3": Family(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "phi4": Family(PHI4, (*CHATML_TOKENS, "<|im_sep|>")),
    "deepseek": Family(DEEPSEEK, ("<|User|>", "<|Assistant|>", "<|end|>")),
    "smollm2": Family(SMOLLM2, CHATML_TOKENS),
    "smollm3": Family(SMOLLM3, CHATML_TOKENS),
    "granite": Family(
        GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")
    ),
    "command": Family(
        COMMAND, ("<|START|>", "<|END|>", "<|SYSTEM|>", "<|USER|>", "<|CHATBOT|>", "<|ACTION|>")
    ),
    "hermes": Family(HERMES, CHATML_TOKENS),
    "olmo": Family(OLMO, ()),
    "glm4": Family(
        GLM4,
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ),
}
