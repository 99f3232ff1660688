package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// The configurations that the deployment examples bring are good ones.
func TestDeployedConfigurations(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"compose/durward.yaml", "kubernetes/durward.yaml"} {
		text, err := os.ReadFile("../deploy/" + path)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "durward.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if status, out, stderr := durward(t, "check", "-config", file); status != 0 {
			t.Errorf("%s: %s%s", path, out, stderr)
		}
	}
}

// What the Kubernetes example's files say of each other is true: selectors find pods,
// probes and services name ports that there are, mounts name volumes, and the pod is
// given the time that the gateway takes to end.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	type port struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	type probe struct {
		HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
	}
	type container struct {
		Name            string
		Image           string
		RestartPolicy   string `yaml:"restartPolicy"`
		Args            []string
		Ports           []port
		StartupProbe    probe `yaml:"startupProbe"`
		LivenessProbe   probe `yaml:"livenessProbe"`
		ReadinessProbe  probe `yaml:"readinessProbe"`
		SecurityContext struct {
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct{ Drop []string }
		} `yaml:"securityContext"`
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	var deployment struct {
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
					SecurityContext               struct {
						RunAsNonRoot bool `yaml:"runAsNonRoot"`
						RunAsUser    int  `yaml:"runAsUser"`
					} `yaml:"securityContext"`
					InitContainers []container `yaml:"initContainers"`
					Volumes        []struct {
						Name      string
						ConfigMap struct{ Name string } `yaml:"configMap"`
					}
				}
			}
		}
	}
	var service struct {
		Spec struct {
			Selector map[string]string
			Ports    []struct {
				TargetPort string `yaml:"targetPort"`
			}
		}
	}
	var kustomization struct {
		Resources          []string
		ConfigMapGenerator []struct {
			Name  string
			Files []string
		} `yaml:"configMapGenerator"`
	}
	var config struct {
		Listen, Health string
		Shutdown       struct{ Grace, Drain time.Duration }
	}
	read := func(name string, into any) {
		t.Helper()
		text, err := os.ReadFile("../deploy/kubernetes/" + name)
		if err == nil {
			err = yaml.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	read("deployment.yaml", &deployment)
	read("service.yaml", &service)
	read("kustomization.yaml", &kustomization)
	read("durward.yaml", &config)

	pod := deployment.Spec.Template.Spec
	labels := fmt.Sprint(deployment.Spec.Template.Metadata.Labels)
	if fmt.Sprint(deployment.Spec.Selector.MatchLabels) != labels || fmt.Sprint(service.Spec.Selector) != labels {
		t.Error("a selector does not find the pods")
	}
	if took := config.Shutdown.Grace + config.Shutdown.Drain; took <= 0 || time.Duration(pod.TerminationGracePeriodSeconds)*time.Second <= took {
		t.Errorf("the pod is given %d s to end, and the gateway takes %v", pod.TerminationGracePeriodSeconds, took)
	}
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.RunAsUser != 65532 {
		t.Error("it runs as another user than the image's")
	}
	for _, name := range kustomization.Resources {
		read(name, &struct{}{})
	}
	if len(pod.InitContainers) != 1 {
		t.Fatalf("%d sidecars", len(pod.InitContainers))
	}
	g := pod.InitContainers[0]
	ports := map[string]string{}
	for _, p := range g.Ports {
		ports[p.Name] = fmt.Sprint(":", p.ContainerPort)
	}
	if !strings.HasSuffix(config.Listen, ports["http"]) || !strings.HasSuffix(config.Health, ports["health"]) || len(ports) != 2 {
		t.Errorf("the ports %v are not those of the configuration", ports)
	}
	if service.Spec.Ports[0].TargetPort != "http" {
		t.Error("the service leads past the gateway")
	}
	for _, p := range []struct {
		probe
		path string
	}{{g.StartupProbe, "/healthz"}, {g.LivenessProbe, "/healthz"}, {g.ReadinessProbe, "/readyz"}} {
		if p.HTTPGet.Port != "health" || p.HTTPGet.Path != p.path {
			t.Errorf("a probe asks for %s at %s", p.HTTPGet.Path, p.HTTPGet.Port)
		}
	}
	s := g.SecurityContext
	if g.RestartPolicy != "Always" || !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("the sidecar may do more than it has to: %+v", s)
	}
	for _, m := range g.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(v struct {
			Name      string
			ConfigMap struct{ Name string } `yaml:"configMap"`
		}) bool {
			return v.Name == m.Name
		}) {
			t.Errorf("there is no volume %q", m.Name)
		}
	}
	if made := kustomization.ConfigMapGenerator; len(made) != 1 || made[0].Name != "durward" || !slices.Equal(made[0].Files, []string{"durward.yaml"}) {
		t.Errorf("the configuration is made as %+v", made)
	}
}

// Every configuration in the recipes is a good one, and their Go code is Go.
func TestRecipes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := newAuthority(t).pair(t)
	configs, programs := 0, 0
	for _, block := range strings.Split(string(text), "```")[1:] {
		kind, content, _ := strings.Cut(block, "\n")
		switch kind {
		case "yaml":
			configs++
			file := filepath.Join(t.TempDir(), "durward.yaml")
			content = strings.NewReplacer("app.crt", cert, "app.key", key).Replace(content)
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if status, out, stderr := durward(t, "check", "-config", file); status != 0 {
				t.Errorf("%s: %s%s", content, out, stderr)
			}
		case "go":
			programs++
			dir := t.TempDir()
			program := "package main\n\nimport (\n\t\"net/http\"\n\t\"time\"\n)\n\n" + content + "\nfunc main() { http.HandleFunc(\"/\", func(w http.ResponseWriter, r *http.Request) { signIn(w, r, \"t\", time.Now()) }) }\n"
			if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("go", "vet", filepath.Join(dir, "main.go")).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		case "js":
			programs++
			node := need(t, "node", "apt-get install nodejs npm")
			file := filepath.Join(t.TempDir(), "recipe.mjs")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(node, "--check", file).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	}
	if configs != 6 || programs != 3 {
		t.Errorf("%d configurations and %d programs", configs, programs)
	}
}
