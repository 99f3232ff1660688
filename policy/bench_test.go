package policy

import (
	"fmt"
	"testing"
)

// many are so many routes below /api/v1/, and one for everything else.
func many(n int) []RouteConfig {
	routes := []RouteConfig{{Name: "all", Path: "/"}}
	for i := range n - 1 {
		routes = append(routes, RouteConfig{Name: fmt.Sprint("r", i), Path: fmt.Sprintf("/api/v1/r%d/", i), Allow: []GrantConfig{{Scopes: []string{"read"}}}})
	}
	return routes
}

// BenchmarkFind finds a route among ten and among ten thousand.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, err := Compile(many(n), []string{"corp"})
			if err != nil {
				b.Fatal(err)
			}
			for _, target := range []string{fmt.Sprintf("/api/v1/r%d/orders/7", n-2), "/index.html"} {
				path, _, err := ReadTarget(target)
				if err != nil {
					b.Fatal(err)
				}
				b.Run(target[1:4], func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if rt, err := p.Find(Host{Name: "app.test"}, path, nil); rt == nil || err != nil {
							b.Fatal(rt, err)
						}
					}
				})
			}
		})
	}
}

// BenchmarkCompile compiles ten thousand routes.
func BenchmarkCompile(b *testing.B) {
	routes := many(10_000)
	for b.Loop() {
		if _, err := Compile(routes, []string{"corp"}); err != nil {
			b.Fatal(err)
		}
	}
}
