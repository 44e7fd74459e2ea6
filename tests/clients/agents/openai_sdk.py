"""The official client of OpenAI: chat completions and responses."""

import json

import openai
from tools import QUESTION, SCHEMAS, STREAMED, TOOLS, URL, WAY, called

client = openai.OpenAI(base_url=URL, api_key="unused", max_retries=0)


def chat() -> str:
    functions = [{"name": name, "description": TOOLS[name].__doc__, "parameters": SCHEMAS[name]} for name in TOOLS]
    tools = [{"type": "function", "function": function} for function in functions]
    messages = [{"role": "user", "content": QUESTION}]
    while True:
        if STREAMED:
            with client.chat.completions.stream(model="gpt-x", messages=messages, tools=tools) as stream:
                message = stream.get_final_completion().choices[0].message
        else:
            completion = client.chat.completions.create(model="gpt-x", messages=messages, tools=tools)
            message = completion.choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in message.tool_calls:
            result, _ = called(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def responses() -> str:
    tools = [
        {
            "type": "function",
            "name": name,
            "description": TOOLS[name].__doc__,
            "parameters": SCHEMAS[name],
            "strict": True,
        }
        for name in TOOLS
    ]
    items = [{"role": "user", "content": QUESTION}]
    while True:
        if STREAMED:
            with client.responses.stream(model="gpt-x", input=items, tools=tools) as stream:
                for _ in stream:
                    pass
                response = stream.get_final_response()
        else:
            response = client.responses.create(model="gpt-x", input=items, tools=tools)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return response.output_text
        for call in calls:
            items.append(call.model_dump(exclude_none=True, exclude={"parsed_arguments"}))
            result, _ = called(call.name, json.loads(call.arguments))
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})


print(chat() if WAY == "chat" else responses())
