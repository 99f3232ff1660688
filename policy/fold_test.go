package policy

import "testing"

// Where case says nothing, it says nothing in any letter: a path goes to the route that
// a server would take which knows all of them, or nowhere.
func TestFoldBeyondASCII(t *testing.T) {
	var routes []RouteConfig
	for _, path := range []string{"/", "/caf\u00e9/", "/\u00c4RZTE/{id}", "/book"} {
		routes = append(routes, RouteConfig{Name: path, Path: path, FoldCase: true})
	}
	p, err := Compile(routes, []string{"corp"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ raw, want string }{
		{"/caf%C3%A9/x", "/caf\u00e9/"}, {"/CAF%C3%A9/x", "/caf\u00e9/"}, {"/caf%C3%89/x", ""}, {"/CAF%C3%89/x", ""}, {"/caf\u00c9/x", ""},
		{"/%C3%A4rzte/1", "/\u00c4RZTE/{id}"}, {"/%C3%84rzte/1", ""}, {"/%C3%A4RZTE/\u00c9", "/\u00c4RZTE/{id}"},
		{"/boo%E2%84%AA", ""}, {"/BOOK", "/book"}, {"/\u00c9", "/"}, {"/x%C3%89;y", "/"},
	} {
		path, _, err := ReadTarget(c.raw)
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		rt, err := p.Find(Host{Name: "app.test"}, path, nil)
		if rt != nil && err == nil {
			name = rt.Name
		}
		if name != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", c.raw, name, err, c.want)
		}
	}
}
