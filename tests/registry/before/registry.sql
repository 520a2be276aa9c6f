BEGIN TRANSACTION;
CREATE TABLE adapters (
	name VARCHAR(64) NOT NULL, 
	last_version INTEGER NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "adapters" VALUES('reviews',2,'2026-11-29 19:31:01.836764');
INSERT INTO "adapters" VALUES('scaled',1,'2026-11-29 19:31:02.136019');
INSERT INTO "adapters" VALUES('both',1,'2026-11-29 19:31:02.280020');
INSERT INTO "adapters" VALUES('reward',1,'2026-11-29 19:31:02.440047');
INSERT INTO "adapters" VALUES('stars',1,'2026-11-29 19:31:02.587962');
INSERT INTO "adapters" VALUES('whole',1,'2026-11-29 19:31:02.716097');
INSERT INTO "adapters" VALUES('ppo',1,'2026-11-29 19:31:02.940144');
INSERT INTO "adapters" VALUES('odd',1,'2026-11-29 19:31:03.087737');
CREATE TABLE alias_moves (
	id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	alias VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	moved_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(name, version) REFERENCES versions (name, version)
);
INSERT INTO "alias_moves" VALUES(1,'reviews','default',1,'2026-11-29 19:31:03.157974');
INSERT INTO "alias_moves" VALUES(2,'reviews','default',2,'2026-11-29 19:31:03.210404');
INSERT INTO "alias_moves" VALUES(3,'reviews','canary',1,'2026-11-29 19:31:03.249778');
CREATE TABLE calibrations (
	id INTEGER NOT NULL, 
	record JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "calibrations" VALUES(1,'{"stage": "sft", "actual": 1}','2026-11-29 19:31:03.329513');
CREATE TABLE keys (
	id VARCHAR(12) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	label VARCHAR(100) NOT NULL, 
	created_at DATETIME NOT NULL, 
	last_used DATETIME, 
	revoked_at DATETIME, 
	admin BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "keys" VALUES('6222347ab820','6222347ab820cbd0e7d04c2ecdf663c1c94883166a7d462894e896dd8074d423','operator','2026-11-29 19:31:03.277083',NULL,NULL,1);
CREATE TABLE meta (
	"key" VARCHAR(64) NOT NULL, 
	value VARCHAR(256) NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema_version','3');
CREATE TABLE parents (
	name VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	parent_name VARCHAR(64) NOT NULL, 
	parent_version INTEGER NOT NULL, 
	PRIMARY KEY (name, version, parent_name, parent_version), 
	FOREIGN KEY(name, version) REFERENCES versions (name, version)
);
INSERT INTO "parents" VALUES('ppo',1,'reviews',1);
INSERT INTO "parents" VALUES('ppo',1,'reward',1);
CREATE TABLE versions (
	name VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	base VARCHAR NOT NULL, 
	base_fingerprint VARCHAR NOT NULL, 
	location VARCHAR NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	lineage JSON NOT NULL, 
	metrics JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	why_not VARCHAR, 
	PRIMARY KEY (name, version), 
	FOREIGN KEY(name) REFERENCES adapters (name)
);
INSERT INTO "versions" VALUES('reviews',1,'lora','b','f','artifacts/reviews/334e86ec21bb4a938dd9c156507a46ec','9d2acaca8041775bb58f0179973a1b4d128984719501adaf949d044787a9f43f','{"recipe": "r1", "parents": []}','{"loss": 1.5}','2026-11-29 19:31:01.650971',NULL);
INSERT INTO "versions" VALUES('reviews',2,'lora','b','f','artifacts/reviews/5cc3270d52f9493387356c2ba68a0482','a1e1785c017b83e70b54c45d9bc386a950fa9c4268e4077dbe2f2720ae6a6789','{}','{"loss": 1.5}','2026-11-29 19:31:01.919282','it uses DoRA (use_dora): merge it into the base, or train plain LoRA');
INSERT INTO "versions" VALUES('scaled',1,'lora','b','f','artifacts/scaled/6f116b0c4c924390a4a92cdd002ddef3','95e91077f885202f2623d5edda9f0ec676cc37580a804be0964572936c582326','{}','{"loss": 1.5}','2026-11-29 19:31:02.054761','its peft_type is ''IA3'': vLLM serves LORA only; merge it into the base (`adapters merge`)');
INSERT INTO "versions" VALUES('both',1,'lora','b','f','artifacts/both/328b736b72e749229f40f035d243813e','5f6f4cab46dbc3f34f4ddff0d9420b976f184018db11960b5e285c908a0dcedf','{}','{"loss": 1.5}','2026-11-29 19:31:02.187887','its method is lora + bitfit: vLLM serves LoRA only; merge it into the base (`adapters merge`)');
INSERT INTO "versions" VALUES('reward',1,'reward','b','f','artifacts/reward/4f7dc0e498764011b6154ab4b09496ae','7943ef74b33d81238d88b650b2f548a6bee789f37a4104212fd9e5c0725839cc','{}','{"loss": 1.5}','2026-11-29 19:31:02.335397','it has a scalar head: the endpoint generates text, it gives no scores');
INSERT INTO "versions" VALUES('stars',1,'classifier','b','f','artifacts/stars/c03419ae906540eebd0e3713a3f01eb8','a059ab4d8a71f089da0c37f896c0e4c691a6a9b5ad62ca386cd05a9ff4a28d25','{}','{"loss": 1.5}','2026-11-29 19:31:02.491512','it is a classifier: the endpoint generates text, it names no classes');
INSERT INTO "versions" VALUES('whole',1,'model','b','f','artifacts/whole/a8782fc1d89646e9a35643008cc02c43','a2c25323f7c1024eb9196e1d73b4f3bb24e794364b423f813cbbc3af59654aa5','{}','{"loss": 1.5}','2026-11-29 19:31:02.635085','it is a whole model, not an adapter: serve it as the base (`model.base`) of an endpoint of its own');
INSERT INTO "versions" VALUES('ppo',1,'lora','b','f','artifacts/ppo/828b082e70074b9b93cb8816f57c7a83','9d2acaca8041775bb58f0179973a1b4d128984719501adaf949d044787a9f43f','{"parents": {"reviews@1": "x", "reward": "y"}}','{"loss": 1.5}','2026-11-29 19:31:02.765059',NULL);
INSERT INTO "versions" VALUES('odd',1,'experiment','b','f','artifacts/odd/73a1bcf16acf48d58a54ef5dd7151f16','c9bf33b9d3cb30d652fdb1a1a6337184996f4a67d2af1060e5bd9e06756d2841','{}','{"loss": 1.5}','2026-11-29 19:31:03.010985','it is of kind ''experiment'': only adapters of kind ''lora'' are served');
CREATE INDEX parents_by_parent ON parents (parent_name, parent_version);
CREATE INDEX alias_moves_by_alias ON alias_moves (name, alias);
COMMIT;
