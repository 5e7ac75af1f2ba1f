package main

// siteSettings are what a site says.
var siteSettings = map[string]Setting{
	"endpoint": Setting{
		About:    "where the platform is",
		Required: true,
		Example:  "https://octopus.example.org",
		Pattern:  "https?://[^/\\s]+",
	},
	"image": Setting{
		About:    "ID of the platform's image for tasks that name none",
		Required: true,
	},
	"pool": Setting{
		About:   "ID of the resource pool that jobs go to",
		Default: "common-pool",
	},
	"username": Setting{
		About:    "who logs in",
		Required: true,
	},
}

// siteSecrets are what a site keeps elsewhere.
var siteSecrets = map[string]Secret{
	"password": Secret{
		About: "of the user",
	},
}

// servers are base URLs by name.
var servers = map[string]Value{
	"api": func(v Vars) any { return concat(get(v["settings"], "endpoint"), "/v1") },
}

// login is how requests are authenticated.
var login = Login{
	Kind: "bearer",
	Request: &Request{
		Method: "POST",
		Path:   func(v Vars) any { return concat("/authmanage/token") },
		Body: func(v Vars) any {
			return object("password", object("secret", "password"), "username", get(v["settings"], "username"))
		},
	},
	Find:    func(v Vars) any { return path(v["body"], "payload", "token") },
	Expires: func(v Vars) any { return path(v["body"], "payload", "expiration") },
}

// limits bound what is asked.
var limits = Limits{
	Rate:  20.0,
	Burst: 40,
	Poll:  int64(3000),
}

// createJob makes a job.
var createJob = Create{
	Before: []Step{Step{
		Name: "dataset",
		Call: Call{
			Request: Request{
				Method: "POST",
				Path:   func(v Vars) any { return concat("/datasetmanage/dataset") },
				Body:   func(v Vars) any { return object("name", get(v["task"], "name")) },
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		Find: func(v Vars) any { return path(v["body"], "payload", "id") },
		Undo: &Call{
			Request: Request{
				Method: "DELETE",
				Path:   func(v Vars) any { return concat("/datasetmanage/dataset/", escape(v["step"])) },
			},
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
	}},
	Call: Call{
		Request: Request{
			Method: "POST",
			Path:   func(v Vars) any { return concat("/trainmanage/trainjob") },
			Body: func(v Vars) any {
				return object("config", list(object("command", concat("PCM_IN=\"${OCTOPUS_DATASET_DIR:-/dataset}/", at(v["data"], "in"), "\" PCM_OUT=\"${OCTOPUS_OUTPUT_DIR:-/model}/", get(v["data"], "out"), `"
export PCM_IN PCM_OUT
`, get(v["task"], "script"), "\n"), "resourceSpecId", get(v["pool"], "native", "id"), "taskNumber", int64(1))), "datasetId", get(v["task"], "step", "dataset"), "desc", get(v["task"], "key"), "imageId", choose(eq(get(v["task"], "image"), ""), func() any { return get(v["settings"], "image") }, func() any { return nil }), "imageUrl", choose(eq(get(v["task"], "image"), ""), func() any { return nil }, func() any { return get(v["task"], "image") }), "name", get(v["task"], "name"), "resourcePool", get(v["settings"], "pool"))
			},
		},
		Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
		Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
	},
	ID: func(v Vars) any { return path(v["body"], "payload", "jobId") },
}

// findJob looks for the job of an attempt.
var findJob = Find{
	List: &List{
		Call: Call{
			Request: Request{
				Path: func(v Vars) any { return concat("/trainmanage/trainjob") },
				Query: map[string]Value{
					"searchKey": func(v Vars) any { return get(v["task"], "name") },
				},
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		Paging: &Paging{
			Kind:  "page",
			Param: "pageIndex",
			Size:  "pageSize",
			Limit: 50,
			First: 1,
			Total: func(v Vars) any { return path(v["body"], "payload", "totalSize") },
		},
		Items: func(v Vars) any { return path(v["body"], "payload", "trainJobs") },
	},
	Where: func(v Vars) any { return eq(get(v["item"], "name"), get(v["task"], "name")) },
	ID:    func(v Vars) any { return path(v["item"], "id") },
}

// watchJobs learns how jobs stand.
var watchJobs = Watch{
	List: &List{
		Call: Call{
			Request: Request{
				Path: func(v Vars) any { return concat("/trainmanage/trainjob") },
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		Paging: &Paging{
			Kind:  "page",
			Param: "pageIndex",
			Size:  "pageSize",
			Limit: 100,
			First: 1,
			Total: func(v Vars) any { return path(v["body"], "payload", "totalSize") },
		},
		Items: func(v Vars) any { return path(v["body"], "payload", "trainJobs") },
	},
	One: &Call{
		Request: Request{
			Path: func(v Vars) any { return concat("/trainmanage/trainjob/", escape(v["id"])) },
		},
		Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
		Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
	},
	Job: func(v Vars) any { return path(v["body"], "payload", "trainJob") },
	Status: Status{
		ID: func(v Vars) any { return path(v["job"], "id") },
		State: func(v Vars) any {
			return choose(fStartsWith(fOrValue(opt(v["job"], "message"), ""), "OOMKilled"), func() any { return "60 OOMKilled" }, func() any { return fString(get(v["job"], "status")) })
		},
		Reason:   func(v Vars) any { return path(v["job"], "message") },
		ExitCode: func(v Vars) any { return opt(opt(opt(v["job"], "tasks"), int64(0)), "exitCode") },
		Seconds: func(v Vars) any {
			return choose(fHasValue(opt(v["job"], "runMs")), func() any {
				return fOptionalOf(fold([]any{}, fValue(opt(v["job"], "runMs")), func(x_ms, x_unused any) any { return false }, func(x_ms, x_unused any) any { return x_ms }, func(x_ms any) any { return div(fDouble(x_ms), 1000.0) }))
			}, func() any { return fOptionalNone() })
		},
		CPU: func(v Vars) any {
			return choose(fHasValue(opt(v["job"], "cpuMs")), func() any {
				return fOptionalOf(fold([]any{}, fValue(opt(v["job"], "cpuMs")), func(x_ms, x_unused any) any { return false }, func(x_ms, x_unused any) any { return x_ms }, func(x_ms any) any { return div(fDouble(x_ms), 1000.0) }))
			}, func() any { return fOptionalNone() })
		},
		Memory: func(v Vars) any { return opt(v["job"], "maxMemory") },
	},
}

// logs are where output is read.
var logs = []Log{Log{
	Stream: "stdout",
	Call: Call{
		Request: Request{
			Path: func(v Vars) any { return concat("/trainmanage/trainjob/", escape(v["id"]), "/log") },
			Query: map[string]Value{
				"offset": func(v Vars) any { return v["offset"] },
				"size":   func(v Vars) any { return "262144" },
			},
		},
		Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
		Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
	},
	Text:   func(v Vars) any { return path(v["body"], "payload", "content") },
	Follow: "marker",
	Next:   func(v Vars) any { return path(v["body"], "payload", "nextOffset") },
}}

// stopJob asks a job to end.
var stopJob = &Call{
	Request: Request{
		Method: "POST",
		Path:   func(v Vars) any { return concat("/trainmanage/trainjob/", escape(v["id"]), "/stop") },
	},
	OK:     []int{200, 409},
	Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
}

// killJob ends a job.
var killJob = &Call{
	Request: Request{
		Method: "DELETE",
		Path:   func(v Vars) any { return concat("/trainmanage/trainjob") },
		Body:   func(v Vars) any { return object("jobIds", list(v["id"])) },
	},
	Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
}

// deleteJob deletes what is left of a job.
var deleteJob = &Call{
	Request: Request{
		Method: "DELETE",
		Path:   func(v Vars) any { return concat("/trainmanage/trainjob") },
		Body:   func(v Vars) any { return object("jobIds", list(v["id"])) },
	},
	Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
}

// jobData is how files come and go.
var jobData = &Data{
	Store: "presigned",
	Pack:  "tar",
	Upload: &Transfer{
		Call: Call{
			Request: Request{
				Method: "POST",
				Path: func(v Vars) any {
					return concat("/datasetmanage/dataset/", escape(get(v["task"], "step", "dataset")), "/file")
				},
				Body:   func(v Vars) any { return object("path", get(v["object"], "name")) },
				Repeat: yes(true),
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		URL: func(v Vars) any { return path(v["body"], "payload", "uploadUrl") },
		Give: map[string]Value{
			"url": func(v Vars) any { return "" },
		},
	},
	Download: &Transfer{
		Call: Call{
			Request: Request{
				Method: "POST",
				Path:   func(v Vars) any { return concat("/trainmanage/trainjob/", escape(v["id"]), "/output") },
				Body:   func(v Vars) any { return object("method", "GET", "path", get(v["object"], "name")) },
				Repeat: yes(true),
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		URL: func(v Vars) any { return path(v["body"], "payload", "url") },
	},
}
