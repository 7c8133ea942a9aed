"""The released chat format: its special tokens, and a template that writes it.

A turn is `<beginning_of_sentence>ROLE NAME\\n...<end_of_sentence>\\n`; nothing stands between turns. Functions that the
model may call are listed after the turns.
"""

BOS = "<beginning_of_sentence>"
EOS = "<end_of_sentence>"
END_OF_DOCUMENT = "<end_of_document>"
IMAGE = "<image>"
FUNCTION_CALL = "<function_call>"

# What a tokenizer for this format must hold as special tokens; the order is that of their ids in ours.
SPECIAL_TOKENS = (END_OF_DOCUMENT, BOS, EOS, IMAGE, FUNCTION_CALL)

CHAT_TEMPLATE = """\
{%- macro turn(heading) -%}
{{ '<beginning_of_sentence>' + heading + '\\n' + caller() + '<end_of_sentence>\\n' }}
{%- endmacro -%}
{%- set headings = {
    'system': 'system ai_setting=assistant',
    'user': 'user name=user',
    'assistant': 'ai name=assistant',
} -%}
{%- for message in messages -%}
{%- if message.role in headings -%}
{%- call turn(headings[message.role]) -%}
{%- for part in message.content -%}
{{- '<image>' if part.type == 'image' else part.text if part.type == 'text' -}}
{%- endfor -%}
{%- endcall -%}
{%- elif message.role == 'function' -%}
{%- call turn('system function_response=functions') -%}
{{- '{"name": "' + message.name + '", "response": ' + message.content[0].text + '}' -}}
{%- endcall -%}
{%- endif -%}
{%- endfor -%}
{%- for tool in tools or [] -%}
{%- call turn('system function_setting=functions') -%}
{{- tool | tojson -}}
{%- endcall -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<beginning_of_sentence>ai name=assistant\\n' }}
{%- endif -%}
"""
