"""The official client of Anthropic."""

import anthropic
from tools import QUESTION, SCHEMAS, STREAMED, TOOLS, URL, called

client = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="unused", max_retries=0)
tools = [{"name": name, "description": TOOLS[name].__doc__, "input_schema": SCHEMAS[name]} for name in TOOLS]
messages = [{"role": "user", "content": QUESTION}]
asked = {"model": "claude-x", "max_tokens": 500, "tools": tools}
while True:
    if STREAMED:
        with client.messages.stream(messages=messages, **asked) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(messages=messages, **asked)
    assert message.usage.output_tokens > 0
    if message.stop_reason != "tool_use":
        print("".join(block.text for block in message.content))
        break
    messages.append(
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]}
    )
    results = []
    for block in message.content:
        if block.type == "tool_use":
            result, failed = called(block.name, dict(block.input))
            results.append({"type": "tool_result", "tool_use_id": block.id, "content": result, "is_error": failed})
    messages.append({"role": "user", "content": results})
