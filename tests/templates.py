"""Chat templates of the kinds that published models have, each written for these tests."""

CHATML = """\
{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# The same with the assistant's turns marked.
MARKED = """\
{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}
{% else %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Llama 2: contents are stripped, the system prompt is inside the first turn, nothing asks for an answer.
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}\
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '')\
 + message['content'].strip() + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

# Llama 3: headers, and today's date in the system prompt.
LLAMA3 = """\
{{ bos_token }}<|start_header_id|>system<|end_header_id|>

Today Date: {{ strftime_now('%d %b %Y') }}<|eot_id|>{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Mistral: the system prompt is in the last question, so earlier turns change when more follow.
MISTRAL = """\
{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}\
{% set rest = messages[1:] if system else messages %}{% for message in rest %}\
{% if message['role'] == 'user' %}{% set last = rest | selectattr('role', 'equalto', 'user') | list | last == message %}\
[INST] {{ system + '\\n\\n' if system and last else '' }}{{ message['content'] }}[/INST]\
{% elif message['role'] == 'assistant' %} {{ message['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"""

# A reasoning model: thoughts stay in the last turn alone, and the prompt opens one that turns do not have.
THINKING = """\
{% for message in messages %}{% if message['role'] == 'user' %}<|User|>{{ message['content'] }}\
{% elif message['role'] == 'assistant' %}<|Assistant|>{{ message['content'].split('</think>') | last }}<|end|>{% endif %}\
{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>
{% endif %}"""

# Qwen 3: the last turn begins with an empty thought, earlier ones do not.
EMPTY_THOUGHT = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Words alone: no special token ends a turn.
PLAIN = """\
{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"""

TOOLS = """\
{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}{% for call in message['tool_calls'] or [] %}<tool_call>
{"name": "{{ call['function']['name'] }}", "arguments": {{ call['function']['arguments'] | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<|User|>", "<|Assistant|>", "<|end|>"),
]
