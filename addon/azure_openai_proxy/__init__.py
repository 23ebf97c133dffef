"""A mitmproxy addon that lets any OpenAI client use Azure OpenAI, and shows the translated traffic."""
