"""Translation between OpenAI's and Azure OpenAI's HTTP APIs: requests, responses, errors, credentials."""
