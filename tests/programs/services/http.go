// SPDX-License-Identifier: MIT
// http server ROOT | client URL ITEM…: the service of the tests (see app.py and client.py) in Go, which makes its system calls itself.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(root string) {
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if request.Method != "POST" {
			body, err = os.ReadFile(filepath.Join(root, filepath.Base(request.URL.Path)))
		}
		if err != nil {
			response.WriteHeader(404)
			return
		}
		response.Header().Set("Content-Length", strconv.Itoa(len(body)))
		response.Write(body)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Printf("PORT %d\n", listener.Addr().(*net.TCPAddr).Port)
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM)
	go func() { <-ends; os.Exit(0) }()
	check(http.Serve(listener, nil))
}

func fetch(url string, items []string) {
	for _, item := range items {
		var response *http.Response
		var err error
		var sent []byte
		if strings.HasPrefix(item, "+") {
			count, _ := strconv.Atoi(item[1:])
			sent = make([]byte, count)
			rand.Read(sent)
			response, err = http.Post(url+"/echo", "application/octet-stream", bytes.NewReader(sent))
		} else {
			response, err = http.Get(url + item)
		}
		check(err)
		got, err := io.ReadAll(response.Body)
		check(err)
		response.Body.Close()
		sum := fmt.Sprintf("%x", sha256.Sum256(got))
		if sent != nil {
			if !bytes.Equal(sent, got) {
				check(fmt.Errorf("%s: %d bytes came back, and not the same", item, len(got)))
			}
			sum = "echo"
		}
		fmt.Println(response.StatusCode, len(got), sum)
	}
}

func main() {
	if os.Args[1] == "server" {
		serve(os.Args[2])
	} else {
		fetch(strings.TrimSuffix(os.Args[2], "/"), os.Args[3:])
	}
}
