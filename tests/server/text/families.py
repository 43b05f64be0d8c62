"""Chat templates with the constructs of well-known model families, written anew: none is a published text."""

from __future__ import annotations

CONTROL = [
    "<|start|>", "<|stop|>", "<|header|>", "<|/header|>", "[INST]", "[/INST]", "[SYS]", "[/SYS]", "[CALLS]", "[RESULT]",
    "[/RESULT]", "<turn>", "</turn>", "<call>", "</call>", "<User>", "<Assistant>",
]  # fmt: skip
"""Control tokens that the templates write, beside BOS and the end token."""

LLAMA_3 = """
{{- bos_token }}
{%- if tools is not none %}{{- "Tools: " + (tools | tojson(indent=2)) }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_text = "" %}
{%- endif %}
{{- "<|header|>system<|/header|>\\n\\n" + system_text + "<|stop|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim + '<|stop|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("One tool call at a time.") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|header|>assistant<|/header|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|stop|>" }}
    {%- else %}
        {{- "<|header|>result<|/header|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|stop|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{%- endif %}
"""

QWEN = """
{%- if messages[0].role == 'system' %}{{- '<|start|>system\\n' + messages[0].content + '<|stop|>\\n' }}{%- endif %}
{%- set state = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if state.searching and message.role == "user" and message.content is string %}
        {%- set state.searching = false %}
        {%- set state.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = '' %}
    {%- if message.content is string %}{%- set content = message.content %}{%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|start|>' + message.role + '\\n' + content + '<|stop|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > state.last and thought %}
            {{- '<|start|>assistant\\n<think>\\n' + thought.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|start|>assistant\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}
                {{- tool_call.arguments }}
            {%- else %}
                {{- tool_call.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</call>' }}
        {%- endfor %}
        {{- '<|stop|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|start|>user' }}{%- endif %}
        {{- '\\n<result>\\n' + content + '\\n</result>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|stop|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Users and assistants must alternate.") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}{{- "[TOOLS]" }}{%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length < 3 %}{{- raise_exception("No id.") }}{%- endif %}
            {{- ', "id": "' + call.id + '"}' + (", " if not loop.last else "]" + eos_token) }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[RESULT] {"content": ' + content | string + ', "call_id": "' + message.tool_call_id + '"}[/RESULT]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant, tool and a first system message.") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate.") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content.") }}
    {%- endif -%}
    {{ '</turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\\n' }}{%- endif -%}
"""

PHI = """{% for message in messages %}
{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
{{ '<|start|>' + message['role'] + '<|header|>' + message['content'] + message['tools'] + '<|stop|>' }}
{% else %}
{{ '<|start|>' + message['role'] + '<|header|>' + message['content'] + '<|stop|>' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|header|>' }}{% else %}{{ eos_token }}{% endif %}"""

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|start|>system\\nBe good.<|stop|>\\n' }}{% endif %}{% if message['role'] == 'assistant' %}
{{ '<|start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|stop|>' }}{% endgeneration %}{{ '\\n' }}
{% else %}{{'<|start|>' + message['role'] + '\\n' + message['content'] + '<|stop|>' + '\\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"""

MINISTRAL = """
{%- macro text_of(content, where) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for block in content -%}
            {%- if block['type'] != 'text' -%}{{- raise_exception('Only text in ' + where + '.') -}}{%- endif -%}
            {{- block['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {{- '[SYS]' -}}{{- text_of(messages[0]['content'], 'system') -}}{{- '[/SYS]' -}}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {{- '[SYS]Be brief.[/SYS]' -}}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST]' -}}{{- text_of(message['content'], 'user') -}}{{- '[/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {%- if (message['content'] is none or message['content'] == '') and not message['tool_calls'] -%}
            {{- raise_exception('An assistant says or calls something.') -}}
        {%- endif -%}
        {%- if message['content'] -%}{{- text_of(message['content'], 'assistant') -}}{%- endif -%}
        {%- if message['tool_calls'] is defined and message['tool_calls'] is not none -%}
            {%- for call in message['tool_calls'] -%}
                {%- set arguments = call['function']['arguments'] -%}
                {%- if arguments is not string -%}
                    {%- set arguments = arguments | tojson | safe -%}
                {%- elif arguments == '' -%}
                    {%- set arguments = '{}' -%}
                {%- endif -%}
                {{- '[CALLS]' + call['function']['name'] + arguments -}}
            {%- endfor -%}
        {%- endif -%}
        {{- eos_token -}}
    {%- elif message['role'] == 'tool' -%}
        {{- '[RESULT]' + message['content'] | string + '[/RESULT]' -}}
    {%- else -%}
        {{- raise_exception('No role ' + message['role'] + '.') -}}
    {%- endif -%}
{%- endfor -%}
"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}
{%- set ns.system_prompt = ns.system_prompt + message['content'] %}{%- set ns.is_first_sp = false %}{%- else %}
{%- set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}
{{'<User>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- for tool in message['tool_calls'] %}
{{- '<Assistant><call>' + tool['type'] + ' ' + tool['function']['name'] + '\\n' }}
{{- tool['function']['arguments'] | tojson + '</call>' }}{%- endfor %}{{ eos_token }}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{% set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<Assistant>' + content + eos_token }}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{ '<result>' + message['content'] + '</result>' }}
{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{ '<Assistant><think>\\n' }}{% endif %}"""

PARTS_ONLY = """{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message.role }}
{%- for part in message.content %}{%- if part.type == 'text' %}{{ part.text }}{%- endif %}{%- endfor %}{{ '<|stop|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

OPTIONS = """{% set facts = dict(b=1, a=[1, 'é']) %}{{ facts | tojson }}{{ facts | tojson(indent=1) }}
{{ facts | tojson(ensure_ascii=true) }}{{ facts | tojson(separators=(',', ':')) }}{{ facts | tojson(sort_keys=true) }}
{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}{% generation %}
{% set inner = 1 %}{{ message.content }}{% endgeneration %}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}
{{ inner is defined }}{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ pad_token is defined }}
{{ bos_token }}{{ eos_token }}{{ messages | length }}{{ strftime_now('%Y') }}"""

FAMILIES = {
    "llama_3": LLAMA_3, "qwen": QWEN, "mistral": MISTRAL, "gemma": GEMMA, "phi": PHI, "chatml": CHATML,
    "ministral": MINISTRAL, "deepseek": DEEPSEEK, "options": OPTIONS,
}  # fmt: skip
