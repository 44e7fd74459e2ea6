"""litellm as a client."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from tools import QUESTION, SCHEMAS, STREAMED, TOOLS, URL, called

functions = [{"name": name, "description": TOOLS[name].__doc__, "parameters": SCHEMAS[name]} for name in TOOLS]
tools = [{"type": "function", "function": function} for function in functions]
messages = [{"role": "user", "content": QUESTION}]
asked = {"model": "openai/gpt-x", "api_base": URL, "api_key": "unused", "tools": tools, "num_retries": 0}
while True:
    response = litellm.completion(messages=messages, stream=STREAMED, **asked)
    if STREAMED:
        response = litellm.stream_chunk_builder(list(response), messages=messages)
    message = response.choices[0].message
    if not message.tool_calls:
        print(message.content)
        break
    messages.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls:
        result, _ = called(call.function.name, json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
