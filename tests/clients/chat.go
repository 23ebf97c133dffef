// A client with OpenAI's address built in: `go run chat.go`.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

const body = `{"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}`

func main() {
	request, err := http.NewRequest("POST", "https://api.openai.com/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		log.Fatal(err)
	}
}
