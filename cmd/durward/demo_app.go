package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"
)

// A demoApp is the old application. It verifies nothing: it believes the headers,
// as it is reached through the gateway alone.
type demoApp struct {
	admin     string // URL of the gateway's operators' interface
	tokenFile string // what that asks for; the gateway makes it at its first start
}

func (a *demoApp) handler() http.Handler {
	says := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, status, map[string]any{"application": text, "headers": received(r.Header)})
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", says(http.StatusOK, "this is who you are"))
	mux.HandleFunc("GET /api/orders", says(http.StatusOK, "two orders: tea, oatcakes"))
	mux.HandleFunc("POST /api/orders", says(http.StatusCreated, "ordered"))
	mux.HandleFunc("GET /admin/{$}", says(http.StatusOK, "welcome, administrator"))
	mux.HandleFunc("POST /helpdesk/revoke", a.serveRevoke)
	pages, err := fs.Sub(demoFiles, "demo")
	if err != nil {
		panic(err) // the name is a constant
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; frame-ancestors 'none'")
		http.ServeFileFS(w, r, pages, "page.html")
	})
	mux.Handle("GET /static/", http.FileServerFS(pages))
	return mux
}

// received are the headers that say who is asking, and those in which a token
// would stand, had the gateway not taken it off.
func received(h http.Header) map[string]string {
	shown := map[string]string{}
	for name, values := range h {
		if strings.HasPrefix(name, "X-") || name == "Authorization" || name == "Cookie" {
			shown[name] = strings.Join(values, ", ")
		}
	}
	return shown
}

// serveRevoke ends the session of whoever asks: one line to the gateway's
// operators' interface.
func (a *demoApp) serveRevoke(w http.ResponseWriter, r *http.Request) {
	if err := a.revoke(r.Context(), r.Header.Get("X-Session"), r.Header.Get("X-Forwarded-User")); err != nil {
		writeJSON(w, http.StatusBadGateway, map[string]string{"application": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"application": "the session is revoked", "headers": received(r.Header)})
}

func (a *demoApp) revoke(ctx context.Context, session, user string) error {
	secret, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return err
	}
	line, err := json.Marshal(map[string]string{"sid": session, "reason": "asked for by " + user})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.admin+"/revocations", bytes.NewReader(line))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(secret)))
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway answered %s", res.Status)
	}
	return nil
}
