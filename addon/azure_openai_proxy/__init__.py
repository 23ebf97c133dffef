"""Any OpenAI client talks to Azure OpenAI, and its owner can see exactly what happened."""
