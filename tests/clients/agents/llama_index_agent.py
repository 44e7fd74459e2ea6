"""LlamaIndex's function agent."""

import asyncio
import os
import tempfile

os.environ.setdefault("NLTK_DATA", tempfile.gettempdir())

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from tools import QUESTION, STREAMED, TOOLS, URL

llm = OpenAILike(
    model="gpt-x", api_base=URL, api_key="unused", is_chat_model=True, is_function_calling_model=True, max_retries=0
)
tools = [FunctionTool.from_defaults(function) for function in TOOLS.values()]


async def main() -> None:
    print(await FunctionAgent(tools=tools, llm=llm, streaming=STREAMED).run(QUESTION))


asyncio.run(main())
