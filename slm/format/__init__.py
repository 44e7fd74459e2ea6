"""The text contract with the small model: its prompt, the Thought/Action pattern, tool signatures and grammars."""
